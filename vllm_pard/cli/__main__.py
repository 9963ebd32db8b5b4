from vllm_pard.cli import main

main()
