"""What is known about photos without Ray: finding, decoding, judging and drawing them."""
