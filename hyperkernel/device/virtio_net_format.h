// linux/virtio_net.h for C++: it names a field with a keyword.
#pragma once

#define class command_class
#include <linux/virtio_net.h>
#undef class
