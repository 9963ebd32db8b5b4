"""What several commands say and read in the same way."""

# As everywhere a short name beats a folder: a command means the same in every folder.
TARGET_HELP = 'Folder or Hugging Face name of the target; "demo": the bundled one (a folder of that name: ./demo).'
