# What the acts of deploy/demo that have a guest share. Sourced; $bin and $state are set, and $console is hkctl's process.

fail() {
  echo "demo: $*" >&2
  tail -n 5 "$state/log" "$state/console" >&2
  exit 1
}
say() { # as it would be typed
  local word line='$ hkctl'
  for word; do [[ $word != *' '* ]] || word="'$word'"; line+=" $word"; done
  echo "$line"
  "$bin/hkctl" "$@"
}
await() { # TEXT [SECONDS]: on the console
  local limit=${2:-$BOOT_SECONDS}
  local deadline=$((SECONDS + limit))
  until grep -qa "$1" "$state/console"; do
    kill -0 "$console" 2>/dev/null || fail "the console closed before '$1'"
    [ $SECONDS -lt $deadline ] || fail "no '$1' on the console within $limit s"
    sleep 0.2
  done
}
# What the guest needs to run programs for `hkctl vm exec`: its agent, and the modules of its devices.
make_initrd() { # KERNEL MODULE...
  local kernel=$1; shift
  "$here/make-initramfs" "$state/initrd" --program "$(command -v qemu-ga || echo /usr/sbin/qemu-ga)" \
    --modules "${kernel%/boot/*}/lib/modules/${kernel##*/vmlinuz-}" virtio_pci virtio_blk virtio_console "$@"
}
readonly START_AGENT='mkdir -p /var/run; qemu-ga -d -t /run -f /run/ga.pid -p /dev/vport*p1'
