"""Logistic regression on hand-written digits."""
