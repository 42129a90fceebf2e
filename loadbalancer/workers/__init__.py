"""Workers: data planes in processes of their own, which the control plane starts and directs."""
