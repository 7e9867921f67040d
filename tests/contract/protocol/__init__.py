"""What front ends ask of a target over vhost-user: known ones, their traps, and their memory."""
