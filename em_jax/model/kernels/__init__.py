"""What is written for one kind of device; each kernel says what it serves, and the plain formulas are one level up."""
