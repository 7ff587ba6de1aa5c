"""What is written for one kind of device; `dispatch.py` chooses between it and the plain formula."""
