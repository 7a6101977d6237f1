"""Scores datasets on Ray: files of texts in, Parquet files of margins and probabilities out."""
