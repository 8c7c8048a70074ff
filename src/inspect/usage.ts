import { measureQcow2Usage, type Qcow2Usage } from '../../formats/index.ts';
import { type InspectOptions, inspectFile, requireInternalSnapshots } from './inspect-file.ts';

/** What the states of the disk in one file cost. */
export interface ImageUsage extends Qcow2Usage {
  readonly path: string;
  readonly format: string;
  /** Bytes that the file takes on the host, which leaves out what is holes; undefined when nobody knows. */
  readonly actualSize: number | undefined;
}

/**
 * What each snapshot of an image costs, and what they share. Reads tables only.
 *
 * @throws {LunetteError} UNSUPPORTED for formats without internal snapshots; CORRUPT; LOCKED
 */
export async function measureUsage(path: string, options: InspectOptions): Promise<ImageUsage> {
  return inspectFile(path, options, async ({ layer, info, look }) => {
    requireInternalSnapshots(layer);
    const usage = await look(() => measureQcow2Usage(layer.storage));
    return { path, format: layer.format, actualSize: info.actualSize, ...usage };
  });
}
