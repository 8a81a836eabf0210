"""What a checkpoint says beside its weights: vocabulary, sampling defaults, provenance."""
