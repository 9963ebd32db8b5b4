"""What `vllm-pard bench` measures, and on which prompts."""
