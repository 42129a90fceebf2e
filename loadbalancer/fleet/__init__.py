"""The life of replicas: how many there should be, who they are, and what keeps them alive."""
