"""How fast and how large: plans compiled without the device, measurements beside a peer."""
