/** A number for each of many clusters: an open hash table in typed arrays, as an image with small clusters has millions of tables. */
export class ClusterMap {
  #clusters = new Float64Array(1024).fill(-1);
  #values = new Uint32Array(1024);
  #size = 0;

  /** 0 for a cluster that has none. */
  get(cluster: number): number {
    return this.#values[this.#slot(cluster)] as number;
  }

  /** @param cluster a positive integer */
  set(cluster: number, value: number): void {
    if (this.#size * 4 >= this.#clusters.length * 3) this.#grow();
    const slot = this.#slot(cluster);
    if (this.#clusters[slot] === -1) {
      this.#clusters[slot] = cluster;
      this.#size++;
    }
    this.#values[slot] = value;
  }

  /** All clusters that have one, in the order of the file. */
  clusters(): Float64Array {
    return this.#clusters.filter((cluster) => cluster !== -1).sort();
  }

  #slot(cluster: number): number {
    const mask = this.#clusters.length - 1;
    let slot = Math.imul((cluster ^ (cluster / 0x100000000)) | 0, 0x9e3779b1) >>> 7;
    for (slot &= mask; this.#clusters[slot] !== -1 && this.#clusters[slot] !== cluster; ) slot = (slot + 1) & mask;
    return slot;
  }

  #grow(): void {
    const [clusters, values] = [this.#clusters, this.#values];
    this.#clusters = new Float64Array(clusters.length * 2).fill(-1);
    this.#values = new Uint32Array(clusters.length * 2);
    for (let i = 0; i < clusters.length; i++) {
      const cluster = clusters[i] as number;
      if (cluster === -1) continue;
      const slot = this.#slot(cluster);
      this.#clusters[slot] = cluster;
      this.#values[slot] = values[i] as number;
    }
  }
}
