"""The main job end to end on simulated subjects, and the page that it leaves."""
