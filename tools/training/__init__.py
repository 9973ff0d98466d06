"""LoRA training through TRL's SFTTrainer: batches, snapshots, exact shortcuts, adapters on disk."""
