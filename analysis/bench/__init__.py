"""Side by side: nginx, HAProxy, both lanes and a replica itself, pinned alike, in one run (`make bench`)."""
