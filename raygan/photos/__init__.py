"""What is known about photos without Ray: finding, decoding, judging and drawing them.

Nothing in this package starts or needs a cluster. Its functions take a path, bytes or a picture and give
back an answer, so that Ray's rooms can call them from any worker and a test can call them by hand.
"""
