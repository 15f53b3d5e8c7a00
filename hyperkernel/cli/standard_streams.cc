// For programs: standard streams that are closed when a program starts are /dev/null in it. Else it would give their
// numbers to what it opens next, and read that as input, or log into it. gRPC opens descriptors in its library's
// constructors: only a pre-initialisation function of the program itself (System V ABI, .preinit_array) is early
// enough.

#include <fcntl.h>
#include <unistd.h>

namespace {

void FillStandardStreams(int, char**, char**) {
  int fd = 0;
  do {
    fd = ::open("/dev/null", O_RDWR);
  } while (fd >= 0 && fd <= STDERR_FILENO);
  if (fd > STDERR_FILENO) ::close(fd);
}
[[gnu::section(".preinit_array"), gnu::used]] void (*const fill_standard_streams)(int, char**,
                                                                                  char**) = &FillStandardStreams;

}  // namespace
