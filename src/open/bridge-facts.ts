/** What the bridge to QEMU's formats has on this machine. */
export interface BridgeFacts {
  readonly version: string;
  /** Ends by itself when its parent is killed; else a shell watches. */
  readonly tethered: boolean;
  /** Names for `qemu:FORMAT:PATH` beyond our own formats; undefined: QEMU does not say. */
  readonly formats: readonly string[] | undefined;
  /** Names for `qemu:PROTOCOL:…`. */
  readonly protocols: readonly string[] | undefined;
}

/** Formats that are read without QEMU. */
const OWN = new Set(['qcow2', 'vmdk', 'vdi', 'raw']);

/** Asks qemu-nbd what it is. @throws {NativeError} UNAVAILABLE with the way to get it */
export async function bridgeFacts(program?: string): Promise<BridgeFacts> {
  const [{ findQemuNbd, listDrivers }, { BRIDGE_FORMATS, BRIDGE_PROTOCOLS }] = await Promise.all([
    import('../qemu/program.ts'),
    import('../qemu/source.ts'),
  ]);
  const found = await findQemuNbd(program);
  const drivers = await listDrivers(found);
  return {
    version: found.version,
    tethered: found.tether !== undefined,
    formats:
      drivers && BRIDGE_FORMATS.map(({ driver }) => driver).filter((name) => drivers.has(name) && !OWN.has(name)),
    protocols: drivers && BRIDGE_PROTOCOLS.filter((name) => drivers.has(name)),
  };
}
