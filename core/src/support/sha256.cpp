#include <openssl/evp.h>

#include <dsv3/sdk/error.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/sha256.h>

namespace dsv3 {
namespace {

void check(int ok) {
  if (ok != 1) throw Error("OpenSSL cannot compute SHA-256 on this machine");
}
}  // namespace

Sha256::Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
  check(context_ && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr));
}

Sha256& Sha256::update(const void* bytes, size_t size) {
  check(EVP_DigestUpdate(context_.get(), bytes, size));
  return *this;
}

std::string Sha256::hex() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  check(EVP_DigestFinal_ex(context_.get(), digest, &size));
  std::string text;
  for (unsigned int i = 0; i < size; ++i) {
    text += "0123456789abcdef"[digest[i] >> 4];
    text += "0123456789abcdef"[digest[i] & 15];
  }
  return text;
}

std::string sha256(std::string_view bytes) {
  return Sha256().update(bytes).hex();
}

std::string sha256_of_file(const std::filesystem::path& path) {
  Sha256 digest;
  fs::read_pieces(path, [&](std::string_view piece) { digest.update(piece); });
  return digest.hex();
}

}  // namespace dsv3
