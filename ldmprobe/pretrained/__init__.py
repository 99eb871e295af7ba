"""Pretrained diffusers pipelines, in and out: loading, finetuning by LoRA, export."""
