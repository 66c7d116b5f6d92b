"""Recognise hand-written digits: a small network on scikit-learn's 8x8 images, or on own files.

``data`` finds and splits the examples, ``model`` is the network, ``settings`` what can be set,
``client_app`` what a node runs and ``task`` what the coordinator calls.
"""
