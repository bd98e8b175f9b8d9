"""SAEs between libraries: formats read and written, evaluation of what others trained."""
