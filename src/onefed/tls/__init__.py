"""Who may talk to whom: certificates, node keys and the decision to use them.

``authority``   a certificate authority and the server certificates it signs: no disk
``names``       subject alternative names: what an operator writes, what a certificate holds
``pem``         from untrusted text to checked certificates and keys
``files``       private files and folders, with their modes from the first byte
``material``    the certificate folder of a coordinator, and the pinned CA of a node
``node_keys``   the key pair by which the coordinator knows a node
``trust``       TLS or not, and whose CA certificate: decisions without I/O
``errors``      what they raise

Nothing in this room prints, logs or puts into an error any byte of the material it is given.
"""
