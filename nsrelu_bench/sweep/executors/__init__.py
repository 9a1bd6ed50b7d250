"""What computes runs: processes on this machine, or Ray."""
