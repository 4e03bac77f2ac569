"""Makes pyjwt.json: a key set, and a token by each of its keys, as PyJWT of Python writes them. Good until 2100.

    pip install 'pyjwt[crypto]' && python3 pyjwt.py > pyjwt.json
"""

import json

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER = "https://pyjwt.example"

rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
keys = {
    "RS256": (jwt.algorithms.RSAAlgorithm, rsa_key),
    "PS256": (jwt.algorithms.RSAPSSAlgorithm, rsa.generate_private_key(public_exponent=65537, key_size=3072)),
    "ES256": (jwt.algorithms.ECAlgorithm, ec.generate_private_key(ec.SECP256R1())),
    "EdDSA": (jwt.algorithms.OKPAlgorithm, ed25519.Ed25519PrivateKey.generate()),
}
claims = {"iss": ISSUER, "sub": "alice", "aud": ["shop", "bank"], "exp": 4102444800, "iat": 1700000000, "groups": ["admin"]}
jwks = []
tokens = {}
for algorithm, (kind, key) in keys.items():
    public = kind.to_jwk(key.public_key(), as_dict=True)
    jwks.append({**public, "kid": algorithm.lower(), "use": "sig"})
    tokens[algorithm] = jwt.encode(claims, key, algorithm=algorithm, headers={"kid": algorithm.lower()})
print(json.dumps({"issuer": ISSUER, "jwks": {"keys": jwks}, "tokens": tokens}, indent=1))
