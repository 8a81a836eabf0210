"""What is decided before a weight is read: context, settings, device, memory."""
