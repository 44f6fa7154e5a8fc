"""A verifier that knows OpenID Connect and nothing of SPIFFE: it believes tokens by their issuer's discovery alone."""

import json
import sys
import urllib.request

import jwt


def main() -> None:
    issuer, audience, token = sys.argv[1:4]
    with urllib.request.urlopen(f"{issuer}/.well-known/openid-configuration") as answer:
        document = json.load(answer)
    if document["issuer"] != issuer:
        raise SystemExit(f"issuer {document['issuer']!r} and not {issuer!r}")
    key = jwt.PyJWKClient(document["jwks_uri"]).get_signing_key_from_jwt(token)
    algorithms = document["id_token_signing_alg_values_supported"]
    required = ["exp", "iat", "iss", "sub", "aud"]
    try:
        claims = jwt.decode(
            token, key, algorithms=algorithms, audience=audience, issuer=issuer, options={"require": required}
        )
    except jwt.InvalidTokenError as error:
        raise SystemExit(f"refused: {type(error).__name__}") from error
    print("verified", claims["sub"])


if __name__ == "__main__":
    main()
