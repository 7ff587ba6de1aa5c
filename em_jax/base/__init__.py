"""What every room leans on: errors, files written whole, progress, signals, timers, the runtime, several hosts."""
