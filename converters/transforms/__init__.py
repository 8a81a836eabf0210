"""What changes a checkpoint on its way: adapters and chat templates."""
