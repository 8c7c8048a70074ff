/** What checking the metadata of an image found. Counts as `qemu-img check` gives them, whatever the format. */
export interface CheckResult {
  /** Metadata that contradicts itself: reading gives wrong bytes, or the next write may destroy something. Not repaired ones. */
  corruptions: number;
  /** Space that nothing refers to: wasteful, harmless. Not repaired ones. */
  leaks: number;
  corruptionsFixed: number;
  leaksFixed: number;
  /** Places that could not be judged, because reading failed. */
  checkErrors: number;
  /** Allocated units (clusters, blocks, grains), and how many the image has. */
  allocatedClusters: number;
  totalClusters: number;
  /** Units that are not where the one before them would lead, and compressed ones; as far as the format has such. */
  fragmentedClusters: number;
  compressedClusters: number;
  /** Behind the last byte in use, in the file that was opened. */
  imageEndOffset: number;
  /** One sentence per finding, at most MAX_MESSAGES. */
  readonly messages: string[];
}

export interface CheckOptions {
  /** What to mend; the storage must be writable then. Default: nothing. */
  readonly repair?: 'none' | 'leaks' | 'all' | undefined;
}

/** A hostile image has as many errors as it has entries: the list ends here, the counts go on. */
export const MAX_MESSAGES = 1000;

export function emptyCheckResult(): CheckResult {
  return {
    corruptions: 0,
    leaks: 0,
    corruptionsFixed: 0,
    leaksFixed: 0,
    checkErrors: 0,
    allocatedClusters: 0,
    totalClusters: 0,
    fragmentedClusters: 0,
    compressedClusters: 0,
    imageEndOffset: 0,
    messages: [],
  };
}

/** Adds a sentence, while there is room. */
export function report(result: CheckResult, message: string): void {
  if (result.messages.length < MAX_MESSAGES) result.messages.push(message);
}
