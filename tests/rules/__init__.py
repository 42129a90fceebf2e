"""Rules of the code that no library checks: each module is one part of `make check`."""
