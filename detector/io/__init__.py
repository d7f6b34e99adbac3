"""Files: whole writes, downloads, archives, JSON streams, and facts about the machine."""
