"""For tests of programs that use Penstock: servers inside the process, in virtual time."""
