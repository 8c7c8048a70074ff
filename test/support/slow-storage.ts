import { MemoryStorage } from '../../formats/storage/memory.ts';

/** Memory whose changes of size take effect late, as those of a file on a thread pool may: behind writes that began after them. */
export class SlowResizeStorage extends MemoryStorage {
  override async resize(size: number): Promise<void> {
    for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve));
    await super.resize(size);
  }
}
