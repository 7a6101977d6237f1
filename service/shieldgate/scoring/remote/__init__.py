"""Scorers elsewhere: models that vLLM, SGLang, llama.cpp or the like serve."""
