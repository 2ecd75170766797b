//! LoRA adapters in PEFT's file format.
