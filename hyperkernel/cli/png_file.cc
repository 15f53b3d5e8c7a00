#include "hyperkernel/cli/png_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <png.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

namespace hk::cli {
namespace {

// Every pixel as zoom x zoom.
std::vector<Pixel> Zoomed(const HeatMap& picture, uint32_t zoom) {
  std::vector<Pixel> out;
  out.reserve(picture.pixels.size() * zoom * zoom);
  for (uint32_t y = 0; y < picture.height * zoom; y++) {
    for (uint32_t x = 0; x < picture.width * zoom; x++)
      out.push_back(picture.pixels[size_t{y / zoom} * picture.width + x / zoom]);
  }
  return out;
}

// Empty, or what is wrong.
std::string WriteTo(std::FILE* file, const HeatMap& picture, uint32_t zoom) {
  const std::vector<Pixel> pixels = zoom == 1 ? picture.pixels : Zoomed(picture, zoom);
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = picture.width * zoom;
  image.height = picture.height * zoom;
  image.format = PNG_FORMAT_RGBA;
  if (png_image_write_to_stdio(&image, file, 0, pixels.data(), 0, nullptr) == 0) {
    const std::string why = image.message;
    png_image_free(&image);
    return errno != 0 ? std::strerror(errno) : why;
  }
  if (std::fflush(file) != 0 || fsync(fileno(file)) != 0) return std::strerror(errno);
  return "";
}

}  // namespace

std::string WritePng(const HeatMap& picture, uint32_t zoom, const std::string& path) {
  // A rename would put a file in place of a device or a pipe.
  struct stat there {};
  if (stat(path.c_str(), &there) == 0 && !S_ISREG(there.st_mode)) return "is not a file";
  const std::string draft = fmt::format("{}.{}.tmp", path, getpid());
  const int fd = open(draft.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return std::strerror(errno);
  std::FILE* const file = fdopen(fd, "wb");
  if (file == nullptr) {
    const int error = errno;
    close(fd);
    unlink(draft.c_str());
    return std::strerror(error);
  }
  errno = 0;
  std::string why = WriteTo(file, picture, zoom);
  if (std::fclose(file) != 0 && why.empty()) why = std::strerror(errno);
  if (why.empty() && std::rename(draft.c_str(), path.c_str()) != 0) why = std::strerror(errno);
  if (!why.empty()) unlink(draft.c_str());
  return why;
}

}  // namespace hk::cli
