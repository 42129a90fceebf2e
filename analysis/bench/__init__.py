"""The benchmark: both lanes beside nginx, HAProxy and a replica without load balancer (`make bench`)."""
