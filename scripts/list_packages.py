"""Run by an environment's Python: print its packages' versions, and those of which files are missing, as JSON."""

import json
from importlib import metadata
from pathlib import Path

versions, broken = {}, []
for package in metadata.distributions():
    name = package.metadata["Name"]
    versions[name] = package.version
    files = [path for path in package.files or [] if path.suffix != ".pyc"]
    if not files or not all(Path(str(package.locate_file(path))).exists() for path in files):
        broken.append(name)
print(json.dumps({"versions": versions, "broken": broken}))
