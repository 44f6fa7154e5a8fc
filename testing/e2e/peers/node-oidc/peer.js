// A verifier that knows OpenID Connect and nothing of SPIFFE: it believes tokens by their issuer's discovery alone.
import { createRemoteJWKSet, jwtVerify } from 'jose'

const [issuer, audience, token] = process.argv.slice(2)
const answer = await fetch(`${issuer}/.well-known/openid-configuration`)
const document = await answer.json()
if (document.issuer !== issuer) {
  throw new Error(`issuer ${document.issuer} and not ${issuer}`)
}
const keys = createRemoteJWKSet(new URL(document.jwks_uri))
const algorithms = document.id_token_signing_alg_values_supported
const requiredClaims = ['exp', 'iat', 'iss', 'sub', 'aud']
try {
  const { payload } = await jwtVerify(token, keys, { issuer, audience, algorithms, requiredClaims })
  console.log('verified', payload.sub)
} catch (error) {
  console.error('refused:', error.code)
  process.exitCode = 1
}
