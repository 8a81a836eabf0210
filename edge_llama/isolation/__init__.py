"""A model in a process of its own, behind the same interface: what kills its engine kills no host."""
