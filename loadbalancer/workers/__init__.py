"""Workers: processes that serve clients, which the control plane starts and directs."""
