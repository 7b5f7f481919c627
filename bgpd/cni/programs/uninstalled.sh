#!/bin/sh
# bgpd is uninstalled. This stands where its CNI plugin was: runtimes that remember with which plugins a pod was
# attached (CRI-O, Multus) ask them all when it goes, and keep a pod for ever that one of them does not let go.
# There is nothing to undo. Once no such pod is left, remove this file.
while read -r _; do :; done # a runtime may take it amiss if its configuration is not read
case $CNI_COMMAND in
DEL | GC)
  exit 0
  ;;
VERSION)
  echo '{"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}'
  exit 0
  ;;
STATUS) code=50 ;;
*) code=7 ;; # of the network configuration
esac
echo "{\"cniVersion\": \"1.1.0\", \"code\": $code, \"msg\": \"bgpd is uninstalled: take bgpd-cni out of the network configuration\"}"
exit 1
