"""Workers: data planes in processes of their own, told by the control plane who is in rotation."""
