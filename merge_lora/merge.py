"""Upstream's name of export/merge_lora.py: --original_model_id, --model_id, --save_path."""

from lamra.common.cli import run
from lamra.export.merge_lora import main

if __name__ == "__main__":
    run(main)
