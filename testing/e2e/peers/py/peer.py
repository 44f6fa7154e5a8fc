"""A workload that gets its identity through py-spiffe, whose gRPC core sends the socket's path as HTTP/2 authority."""

import sys

from spiffe import JwtSource, WorkloadApiClient, X509Source


def main() -> None:
    socket, audience = sys.argv[1:3]
    path = f"unix:{socket}"
    with WorkloadApiClient(path) as client:
        svid = client.fetch_x509_svid()
        print("x509", svid.spiffe_id)
        bundles = client.fetch_x509_bundles()
        authorities = bundles.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain).x509_authorities
        print("roots", len(authorities))
        token = client.fetch_jwt_svid(audience={audience})
        print("jwt", token.spiffe_id)
        print("validated", client.validate_jwt_svid(token.token, audience).spiffe_id)
    with X509Source(socket_path=path) as source:
        print("x509 source", source.svid.spiffe_id)
    with JwtSource(socket_path=path) as source:
        print("jwt source", source.fetch_svid(audience={audience}).spiffe_id)


if __name__ == "__main__":
    main()
