"""What is on disk: folders of safetensors and JSON, written whole or not at all, read strictly. Knows no model."""
