#!/bin/busybox sh
# The first process of the machine: mounts what a system has, loads modules, runs
# /vm/run, says its status on the second serial port and switches the machine off.
export PATH=/vm:/usr/sbin:/usr/bin:/bb
export HOME=/root LC_ALL=C ONACC_BIN=/vm/onacc
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /root /var/tmp /var/log /bb
/bin/busybox --install -s /bb
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tracefs tracefs /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
mount -t securityfs securityfs /sys/kernel/security
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/mounts /etc/mtab
ip link set lo up
stty -F /dev/ttyS1 raw -echo
echo "onacc-vm: booted" >/dev/ttyS1
for module in $(cat /etc/onacc-vm-modules); do
    modprobe "$module" || echo "vm: module $module cannot be loaded" >/dev/ttyS1
done
ulimit -n 20000
cd /vm
sh /vm/run </dev/null >/dev/ttyS1 2>&1
printf '\nonacc-vm: status %s\n' $? >/dev/ttyS1
poweroff -f
