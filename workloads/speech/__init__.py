"""Speech to text by models of the Whisper family."""
